"""Suites of the user's own data: a folder of class folders, a table, an image folder or a saved copy of `datasets`."""

from suites.own.suite import check_unchanged, is_place, name_of, read_suite, write_lists

__all__ = ["check_unchanged", "is_place", "name_of", "read_suite", "write_lists"]
