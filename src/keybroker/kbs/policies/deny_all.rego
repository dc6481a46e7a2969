# Refuses every guest: nothing is released while this policy is in force.

package policy

import rego.v1

default allow := false
