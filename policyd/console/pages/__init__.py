"""The pages of the console, a module for each, named as the console's menu names them.

dashboard       requests, denials and users by hour
keys            the list of API keys, and new ones;  key_batch: several keys at once
key_settings    one key;  key_rotation: its new secret;  key_use: programs that use it
simulation      what enforcing a policy would have done to a key's requests
logs            the decision log;  log_details: one decision;  refused_keys: keys not in force
end_users       who sent the requests
try_request     what every policy would decide about a request
audit           what administrators did
account         the password and the sessions;  sign_in, first_password: how they begin

A module lists its routes: ROUTES need a session, PUBLIC do not.
"""
