# Lets every guest that attested pass, whatever its evidence shows, the sample TEE's included.
#
# For trying things out: under this policy whoever can reach the broker can have every secret.

package policy

import rego.v1

default allow := true
