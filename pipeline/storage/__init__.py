"""Everything that has a path: the one room that opens, writes, renames, lists, deletes and locks files."""
