"""The destinations of tensormeter. The class of each destination implements `tensormeter.exporter.Exporter`."""
