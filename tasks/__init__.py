"""Tasks: data, what the head needs, and metrics. A task knows no method and no architecture."""
