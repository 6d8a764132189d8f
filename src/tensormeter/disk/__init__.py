"""Files and file systems: durable writes, locks, private folders, reserves and unresponsive disks."""
