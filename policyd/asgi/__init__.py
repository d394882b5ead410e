"""What all our HTTP servers share: the gateway, the HTTP check and the console.

In the order in which a request passes them:

    listener     uvicorn behind one socket: started, drained and stopped
    tls          its TLS context
    door         takes connections from the socket, as many as there is room for
    connections  the table of connections: their states, deadlines and totals; visit: one entry;
                 limits: its bounds
    bounded      how a protocol reports to that table
    protocol     HTTP/1.1 as a proxy needs it
    reasons      the reason phrases of status lines
    body         a request's body, read piece by piece within a bound
    probes       /healthz, /readyz, /settingsz and /decisionsz
    reply        our own answers, byte for byte
    metrics      the page of metrics; crew_metrics: that of a supervisor and its workers
"""
