"""What policyd and policyd-gateway share as commands and as servers.

    settings       settings that are declared once, as fields of a dataclass
    log_settings   those of the decision log, which policyd and its gateway have alike;
                   serving_settings: those of a server
    configuration  their options: from flags, environment and --config, which yaml_words reads
    click_options  click's options for such fields
    units          numbers with a unit, such as 4GiB and 90d
    groups         groups of commands: their errors, and commands loaded when they are called
    process        what each process sets up first: event loop, garbage collector; allocator: memory
    listening      why an address cannot be listened on
    address        addresses to listen on, taken so that no other program shares them
    networks       networks that a setting lists; http_origin: a policyd's address over HTTP
    tls_files      certificates, keys and authorities, checked before they are used
    crew           the workers of one server, and the operator's signals
    child, parent  a worker process as its parent sees it, and the parent as the worker sees it
    start          the module by which a child process is run, so that Ctrl-C finds it ready
    threads        threads for calls that block, some for each purpose
    deadline       how long a thread may still wait for a database
    database_url   whether a database is a file
    open_files     how many files, and so connections, a process may have
    log_throttle   log lines that a flood of requests would repeat
    worker_clock   a worker's clock, measured against the database's
    config_checks  what `config check` looks at; versions: the option --version
    doctor         checks of a deployment; machine: of this machine; certificates: when they expire
    health         the commands `health`; service_manager: what systemd is told
    private_files  files and folders that only their owner may read

It imports neither a database nor gRPC.
"""
