"""The `prometheus` destination: a scrape endpoint in the agent."""
