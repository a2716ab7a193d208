"""Search algorithms: recipes from evaluations, without a model."""
