"""What the pages share.

render      the templates, with their filters; the Console that pages work on
labels      the console's labels, and how it writes numbers
forms       fields of forms; lookups: what several pages look up in the store
panels      the panels of a key's settings
figures     the dashboard's figures; flags: what flags mean; columns: of the log
documentation   where the documentation is
typed_settings, typed_request   what was typed into a form, valid or not
sorting     tables that are sorted and shown a page at a time
actor       the actor of a request, for the audit trail; changes: what its records say
snippets    programs that use a key
text        text of clients, made safe to show
log_query   the log's filters in a URL
periods     periods of time and their buckets; charts: stacked bars over them
"""
