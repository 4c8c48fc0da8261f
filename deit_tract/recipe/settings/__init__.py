"""Every setting of a recipe, typed and with its limits."""
