"""Parts of a build, each in a module of its own; hatch_build.py runs them."""
