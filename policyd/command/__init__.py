"""What policyd and policyd-gateway share as commands and as servers.

    settings       settings that are declared once, as fields of a dataclass
    log_settings, serving_settings  those that policyd and its gateway have alike
    configuration  their options: from flags, environment and --config, which yaml_words reads
    declared       click's options of such fields
    units          numbers with a unit, such as 4GiB and 90d
    groups         groups of commands: their errors, and commands loaded when they are called
    process        how a process begins: its log, its event loop
    listening      why an address cannot be listened on
    address        addresses to listen at, taken so that no other program shares them
    crew           the workers of one server, and the operator's signals
    child, parent  a worker process: as its parent has it, and as it has its parent
    start          how a worker process begins
    threads        threads for calls that block, some for each purpose
    deadline       how long a thread may still wait for a database
    database_url   whether a database is a file
    open_files     how many files, and so connections, a process may have
    throttle       log lines that a flood of requests would repeat
    doctor         checks of a deployment; machine: of this machine; certificates: their ends
    private_files  files and folders that only their owner may read

It imports neither a database nor gRPC.
"""
