"""Metrics of a node's GPUs, host and processes, which the agent samples once for all ranks.

A *sensor* defines OpenTelemetry instruments and reads their values. A *sampler* runs a sensor on a separate thread with
a separate MeterProvider, so that a hanging reading does not delay other sensors. A *node* has one sampler per sensor
and returns the collected points as columns.
"""
