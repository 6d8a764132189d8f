"""Files and file systems: durable writes, locks, private folders, reserved space and unresponsive disks."""
