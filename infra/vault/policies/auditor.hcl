# The auditor: sees how the keys are made and that an audit device is on; opens nothing.
path "transit/keys/shredlake-*"               { capabilities = ["read"] }
path "transit/config/keys"                    { capabilities = ["read"] }
path "sys/audit"                              { capabilities = ["read", "sudo"] }

path "sys/storage/raft/snapshot*"             { capabilities = ["deny"] }
