# The console: nothing.
path "sys/storage/raft/snapshot*"             { capabilities = ["deny"] }
