"""The pages of the console, a module for each, named as the console's menu names them.

A module lists its routes: ROUTES need a session, PUBLIC do not.
"""
