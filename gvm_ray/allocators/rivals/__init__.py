"""Allocators of other papers, one file each, to compare with."""
