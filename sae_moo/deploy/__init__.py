"""From a recipe to what is handed on: files of weights, packed files, smaller models, cards."""
