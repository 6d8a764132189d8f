"""Servers, receivers, disks and data that tests of several areas use."""
