"""Other people's trainers and adapters: what makes a compressed model whole in their hands."""
