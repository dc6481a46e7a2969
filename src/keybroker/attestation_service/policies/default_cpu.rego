# The attestation policy for confidential CPUs: what a broker holds a guest's claims against when
# nobody has said otherwise.
#
# It is evaluated once for every CPU whose evidence verified. `input` holds the claims of one TEE
# under the TEE's name (input.snp, input.tdx, …), and beside it report_data, init_data and what was
# hashed into them. A verifier has made sure already that all of it is genuine and fresh; what is
# decided here is whether it is good.
#
# The answer is a set of trust claims (draft-ietf-rats-ar4si, section 2.3). Of the values used here,
# 2 to 31 affirm, 32 to 95 warn, 96 and more contraindicate, and 0 asserts nothing. The worst of them
# becomes the status of the device. Every claim starts out with the value that says "not recognised"
# and rises only where evidence and reference values agree, so without reference values nothing is
# affirmed.
#
# Reference values are registered by name with the reference value service; a name that nobody
# registered gives null, which contains nothing and equals nothing that a TEE reports.

package policy

import rego.v1

trust_claims := {
	"executables": executables,
	"hardware": hardware,
	"configuration": configuration,
	"file-system": file_system,
	"instance-identity": instance_identity,
	"runtime-opaque": runtime_opaque,
	"storage-opaque": storage_opaque,
	"sourced-data": sourced_data,
}

# executables, 33: something runs that the verifier does not recognise.
#               3: only approved executables were loaded at boot.
#               4: as 3, seen through a boot loader that hides the single files.
default executables := 33

# hardware, 97: the verifier should recognise the hardware and firmware, but does not.
#            2: genuine, and of a version that is supported.
default hardware := 97

# configuration, 36: parts that matter for security cannot be seen.
#                 3: nothing in it is known to be vulnerable.
#                 2: it is exactly an approved one.
default configuration := 36

# Nothing is asserted about these, unless a policy of your own does.
default file_system := 0

default instance_identity := 0

default runtime_opaque := 0

default storage_opaque := 0

default sourced_data := 0

######################################################################################## Sample
# Anyone can make evidence of the sample TEE. It is here for tests and as an example to copy.

executables := 3 if {
	input.sample
	input.sample.launch_digest in query_reference_value("launch_digest")
}

hardware := 2 if {
	input.sample
	input.sample.svn in query_reference_value("svn")
	input.sample.platform_version.major == query_reference_value("major_version")
	input.sample.platform_version.minor >= query_reference_value("minimum_minor_version")
}

configuration := 2 if {
	input.sample
	input.sample.debug == false
}

################################################################################# AMD SEV-SNP

# The launch digest covers the firmware and, where the firmware measures them, kernel, initrd and
# command line.
executables := 3 if {
	input.snp
	input.snp.measurement in query_reference_value("snp_launch_measurement")
}

# The versions of the firmware that the report was made under.
hardware := 2 if {
	input.snp
	input.snp.reported_tcb_bootloader in query_reference_value("snp_bootloader")
	input.snp.reported_tcb_microcode in query_reference_value("snp_microcode")
	input.snp.reported_tcb_snp in query_reference_value("snp_snp_svn")
	input.snp.reported_tcb_tee in query_reference_value("snp_tee_svn")
}

# 2 where every bit of guest policy and platform is as registered; 3 where at least nobody can debug
# or migrate the guest.
configuration := 2 if {
	input.snp
	input.snp.policy_debug_allowed == false
	input.snp.policy_migrate_ma == false
	input.snp.platform_smt_enabled == query_reference_value("snp_smt_enabled")
	input.snp.platform_tsme_enabled == query_reference_value("snp_tsme_enabled")
	input.snp.policy_abi_major == query_reference_value("snp_guest_abi_major")
	input.snp.policy_abi_minor == query_reference_value("snp_guest_abi_minor")
	input.snp.policy_single_socket == query_reference_value("snp_single_socket")
	input.snp.policy_smt_allowed == query_reference_value("snp_smt_allowed")
} else := 3 if {
	input.snp
	input.snp.policy_debug_allowed == false
	input.snp.policy_migrate_ma == false
}

################################################################################### Intel TDX

# RTMR 1 and 2 cover kernel, initrd and command line; the event log says which file was measured.
executables := 3 if {
	input.tdx
	input.tdx.quote.body.rtmr_1 in query_reference_value("rtmr_1")
	input.tdx.quote.body.rtmr_2 in query_reference_value("rtmr_2")
	tdx_kernel_approved
	tdx_kernel_parameters_approved
} else := 4 if {
	input.tdx
	input.tdx.quote.body.rtmr_1 in query_reference_value("rtmr_1")
	input.tdx.quote.body.rtmr_2 in query_reference_value("rtmr_2")
}

# A TDX quote of Intel's quoting enclave, on a platform that is patched, running a known virtual
# firmware. A status such as OutOfDate can be accepted by comparing input.tdx.tcb_date instead, or
# single advisories of input.tdx.advisory_ids.
hardware := 2 if {
	input.tdx
	input.tdx.quote.header.tee_type == "81000000"
	input.tdx.quote.header.vendor_id == "939a7233f79c4ca9940a0db3957f0607"
	input.tdx.quote.body.mr_td in query_reference_value("mr_td")
	input.tdx.tcb_status == "UpToDate"
	input.tdx.collateral_expiration_status == "0"
}

configuration := 2 if {
	input.tdx
	input.tdx.td_attributes.debug == false
	input.tdx.quote.body.xfam in query_reference_value("xfam")
}

tdx_kernel_approved if {
	some event in input.tdx.uefi_event_logs
	event.type_name == "EV_EFI_BOOT_SERVICES_APPLICATION"
	"File(kernel)" in event.details.device_paths
	some measured in event.digests
	measured.digest == query_reference_value("tdvfkernel")
}

tdx_kernel_parameters_approved if {
	some event in input.tdx.uefi_event_logs
	event.type_name == "EV_EVENT_TAG"
	event.details.string == "LOADED_IMAGE::LoadOptions"
	some measured in event.digests
	measured.digest == query_reference_value("tdvfkernelparams")
}

################################################################################### Intel SGX

executables := 3 if {
	input.sgx
	input.sgx.body.mr_enclave in query_reference_value("sgx_mr_enclave")
}

hardware := 2 if {
	input.sgx
	input.sgx.header.vendor_id == "939a7233f79c4ca9940a0db3957f0607"
	input.sgx.body.mr_signer in query_reference_value("sgx_mr_signer")
	input.sgx.tcb_status == "UpToDate"
	input.sgx.collateral_expiration_status == "0"
}

# The attributes tell, among other things, whether the enclave can be debugged.
configuration := 2 if {
	input.sgx
	input.sgx.body["attributes.flags"] in query_reference_value("sgx_attributes_flags")
}

############################################################################# Azure, SNP vTPM

executables := 3 if {
	input["az-snp-vtpm"]
	input["az-snp-vtpm"].measurement in query_reference_value("measurement")
	input["az-snp-vtpm"].tpm.pcr11 in query_reference_value("snp_pcr11")
}

hardware := 2 if {
	input["az-snp-vtpm"]
	input["az-snp-vtpm"].reported_tcb_bootloader in query_reference_value("tcb_bootloader")
	input["az-snp-vtpm"].reported_tcb_microcode in query_reference_value("tcb_microcode")
	input["az-snp-vtpm"].reported_tcb_snp in query_reference_value("tcb_snp")
	input["az-snp-vtpm"].reported_tcb_tee in query_reference_value("tcb_tee")
}

configuration := 2 if {
	input["az-snp-vtpm"]
	input["az-snp-vtpm"].platform_smt_enabled in query_reference_value("smt_enabled")
	input["az-snp-vtpm"].platform_tsme_enabled in query_reference_value("tsme_enabled")
	input["az-snp-vtpm"].policy_abi_major in query_reference_value("abi_major")
	input["az-snp-vtpm"].policy_abi_minor in query_reference_value("abi_minor")
	input["az-snp-vtpm"].policy_single_socket in query_reference_value("single_socket")
	input["az-snp-vtpm"].policy_smt_allowed in query_reference_value("smt_allowed")
}

############################################################################# Azure, TDX vTPM

executables := 3 if {
	input["az-tdx-vtpm"]
	input["az-tdx-vtpm"].tpm.pcr11 in query_reference_value("tdx_pcr11")
}

hardware := 2 if {
	input["az-tdx-vtpm"]
	input["az-tdx-vtpm"].quote.header.tee_type == "81000000"
	input["az-tdx-vtpm"].quote.header.vendor_id == "939a7233f79c4ca9940a0db3957f0607"
	input["az-tdx-vtpm"].quote.body.mr_td in query_reference_value("mr_td")
	input["az-tdx-vtpm"].tcb_status == "UpToDate"
}

configuration := 2 if {
	input["az-tdx-vtpm"]
	input["az-tdx-vtpm"].quote.body.xfam in query_reference_value("xfam")
}

######################################################################################### TPM

executables := 3 if {
	input.tpm
	input.tpm.pcr11 in query_reference_value("tpm_pcr11")
	input.tpm.ak_public in query_reference_value("trusted_aks")
}

hardware := 2 if input.tpm

# A TPM does not tell how the machine around it is configured.
configuration := 0 if input.tpm

############################################################################ IBM Secure Execution
# Evidence of Secure Execution verifies only where measurement, signature and user data are those
# that the owner's own key was given for: that it is here says all.

executables := 3 if input.se

hardware := 2 if input.se

configuration := 2 if input.se

##################################################################################### Arm CCA

executables := 3 if {
	input.cca
	input.cca.realm.cca_realm_initial_measurement in query_reference_value("cca_realm_initial_measurement")
}

hardware := 2 if {
	input.cca
	input.cca.platform.cca_platform_implementation_id in query_reference_value("cca_platform_implementation_id")
}

configuration := 2 if {
	input.cca
	input.cca.realm.cca_realm_personalization_value in query_reference_value("cca_realm_personalization_value")
}

################################################################################### Hygon CSV

executables := 3 if {
	input.csv
	input.csv.measure in query_reference_value("csv_measure")
}

hardware := 2 if {
	input.csv
	input.csv.serial_number in query_reference_value("csv_serial_number")
}

configuration := 3 if {
	input.csv
	input.csv.policy.nodbg == 1
}

################################################################################## Extensions
# Extensions become members of the appraisal beside the trust claims. This one names the workload:
# which images may run, and as which users, according to the agent policy in the init-data. It is
# believed because init-data is bound to the evidence and enforced by the measured guest agent.

extensions := [{
	"name": "ear.trustee.identifiers",
	"key": -18,
	"value": {"validated": object.union(container_images, container_uids)},
}]

containers := input.init_data_claims.agent_policy_claims.containers

container_images := {"container_images": images} if {
	images := [image | image := containers[_].OCI.Annotations["io.kubernetes.cri.image-name"]]
	count(images) > 0
} else := {}

container_uids := {"container_uids": uids} if {
	uids := [uid | uid := containers[_].OCI.Process.User.UID]
	count(uids) > 0
} else := {}
