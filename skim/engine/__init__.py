"""The walk through the layers and the state that flows: knows no method and no architecture by name."""
