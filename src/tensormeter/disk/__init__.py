"""Files and file systems: durable writes, locks, private folders, reserves, and disks that may not answer."""
