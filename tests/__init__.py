"""A package, because a library that is installed here brings a package of this name: processes of tests import ours."""
