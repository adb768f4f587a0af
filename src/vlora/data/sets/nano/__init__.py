"""What the nano model is trained on: pictures of package registries, fetched once."""
