"""Search algorithms: they receive evaluations and return recipes. No models here: every one is tested without."""
