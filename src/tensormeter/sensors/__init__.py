"""Metrics of a node's GPUs, host and processes. The agent samples them once for all ranks.

A *sensor* defines OpenTelemetry instruments and reads their values. A *sampler* runs a sensor on a separate thread with a separate
MeterProvider, so a reading that hangs does not delay other sensors. A *node* has one sampler per sensor, and returns their points in
columns.
"""
