"""The `otlp` destination: any OTLP endpoint, over HTTP or gRPC."""
