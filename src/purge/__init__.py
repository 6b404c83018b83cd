"""purge"""
