"""What is decided: pure, total, and of the standard library only.

endpoints        which endpoints are in scope: the table, and the canonical path
paths            how servers may read a path;  method_override: what makes a POST of a request
model            the values: keys, modes, decision input, decision, denial
decision         decide(): allowed or denied, and by which setting
summary          the decision explained in English
denial           its HTTP response to the byte, and the other answers that all adapters share
"""
