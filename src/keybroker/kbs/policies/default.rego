# The resource policy that a new broker starts with.
#
# A guest that attested may read resources, unless all it showed is the evidence of the sample TEE,
# which anyone can make. Other plugins, and whoever has no attestation result, are refused.
#
# What this policy sees:
#   input                   the claims of the attestation token; one submodule a device:
#                           input.submods.cpu0["ear.status"],
#                           input.submods.cpu0["ear.veraison.annotated-evidence"], …
#   data.plugin             first segment of the path: "resource", "nebula-ca", …
#   data["resource-path"]   the segments after it: ["repository", "type", "tag"]
#   data.query              the query of the URL: {"name": "value"}
#   data.method             "GET", "POST", …
#
# It answers in `allow`: true lets the request pass; false or undefined refuses it.

package policy

import rego.v1

default allow := false

allow if {
	data.plugin == "resource"
	not sample_evidence
}

sample_evidence if input.submods.cpu0["ear.veraison.annotated-evidence"].sample
