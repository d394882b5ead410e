"""The web console: API keys, their settings and the decision log, rendered on the server.

In the order in which a request passes them:

    server      the listener, and the console's URLs
    app         the ASGI application: guards, routes, and pages for errors
    security/   which requests are served: host, origin, session, password, attempts
    pages/      a module for each page
    view/       what pages share: templates, labels, forms, charts, periods
    templates/  HTML (Jinja); static/: styles, icon, htmx and the console's own script
"""

from policyd.console.server import ConsoleServer, console_url, first_link

__all__ = ["ConsoleServer", "console_url", "first_link"]
