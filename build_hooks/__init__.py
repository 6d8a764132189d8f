"""Steps of a build, one per module; hatch_build.py runs them."""
