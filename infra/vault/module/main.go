// Command vault is HashiCorp Vault, built from its published module for tests on this machine.
package main

import (
	"os"

	"github.com/hashicorp/vault/command"
)

func main() { os.Exit(command.Run(os.Args[1:])) }
