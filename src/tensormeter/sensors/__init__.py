"""Statistics of a node: its GPUs, the machine, the training processes. Sampled in the agent, once for all ranks.

A *sensor* names OpenTelemetry instruments and reads values for them; a *sampler* keeps one sensor on a thread and a
MeterProvider of its own, so that a reading that hangs holds up no other sensor; a *node* has one sampler for each sensor and
hands their points over in columns.
"""
