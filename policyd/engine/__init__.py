"""What is decided: pure, total, with the standard library only. It knows no policy by name.

endpoints        which endpoints are in scope: the table, and the canonical path
paths            how servers may read a path;  method_override: what makes a POST of a request
states           what can be the case: modes, overrides, states of what a request holds
places           where an end user can stand, and what an endpoint is;  settings: what keys, routes
                 and the server set
model            the values of a decision: what it depends on, and what it is
policy           what a policy declares;  kinds: what its setting may be
plan             which setting of each policy is in force: levels and override headers
decision         decide(): allowed or denied, and what each policy found
summary          the decision explained in English
denial           a denial's HTTP response to the byte, and the other answers that adapters share
"""
