"""Tutorials: scripts with cells marked by `# %%`, each paired with a notebook of the same name that has been executed."""
