"""Imported before the libraries: looking for garbage in a growing heap of modules is a quarter of their import."""

import gc

gc.disable()
