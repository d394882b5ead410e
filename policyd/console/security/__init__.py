"""Which requests the console serves, and to whom.

guards          checks before each page: host name, origin, session; and the headers of answers
sessions        signed cookies, and the one-time link
kept_forms      forms that were sent after their session had ended
credentials     the administrator's password and its hash
attempts        limits on guessing it
client_address  a client's address, also behind proxies
connection      a browser's connection and its bounds
"""
