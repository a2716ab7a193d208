"""mergekit's merge configurations, as of mergekit 0.1.5: read into recipes, and written from them."""
