"""What is measured: each module is one case, with a function ``measure`` that adds its figures to the bench."""
