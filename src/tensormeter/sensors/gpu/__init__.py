"""GPU sensors."""
