"""Open and seal messages with the AWS Encryption SDK for Python, under a raw AES key.

Reads one JSON job from standard input, writes one JSON result to standard output. Bytes are hexadecimal.

  {"key": {"namespace", "name", "bytes"},
   "open": [{"message"}],
   "seal": [{"suite", "context", "frame_length", "plaintext"}]}
->
  {"opened": [{"plaintext", "context", "suite", "frame_length"} or {"error"}],
   "sealed": [{"message", "message_id"}]}
"""

import json
import logging
import sys

import aws_encryption_sdk
from aws_encryption_sdk.identifiers import (
    AlgorithmSuite,
    CommitmentPolicy,
    EncryptionKeyType,
    WrappingAlgorithm,
)
from aws_encryption_sdk.internal.crypto.wrapping_keys import WrappingKey
from aws_encryption_sdk.key_providers.raw import RawMasterKeyProvider

SUITES = {
    0x0478: AlgorithmSuite.AES_256_GCM_HKDF_SHA512_COMMIT_KEY,
    0x0578: AlgorithmSuite.AES_256_GCM_HKDF_SHA512_COMMIT_KEY_ECDSA_P384,
}


def provider(key):
    """A provider of one raw AES key."""

    class OneKey(RawMasterKeyProvider):
        provider_id = key["namespace"]

        def _get_raw_key(self, key_id):
            return WrappingKey(
                wrapping_algorithm=WrappingAlgorithm.AES_256_GCM_IV12_TAG16_NO_PADDING,
                wrapping_key=bytes.fromhex(key["bytes"]),
                wrapping_key_type=EncryptionKeyType.SYMMETRIC,
            )

    one = OneKey()
    one.add_master_key(key["name"])
    return one


def main():
    # The SDK logs each refusal with its stack; the result says it in a word.
    logging.disable(logging.CRITICAL)
    job = json.load(sys.stdin)
    keys = provider(job["key"])
    client = aws_encryption_sdk.EncryptionSDKClient(
        commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
    )

    def opened(case):
        try:
            plaintext, header = client.decrypt(source=bytes.fromhex(case["message"]), key_provider=keys)
        except Exception as error:  # whatever it says, it is a refusal
            return {"error": type(error).__name__}
        return {
            "plaintext": plaintext.hex(),
            "context": header.encryption_context,
            "suite": header.algorithm.algorithm_id,
            "frame_length": header.frame_length,
        }

    def sealed(case):
        message, header = client.encrypt(
            source=bytes.fromhex(case["plaintext"]),
            key_provider=keys,
            algorithm=SUITES[case["suite"]],
            encryption_context=case["context"],
            frame_length=case["frame_length"],
        )
        return {"message": message.hex(), "message_id": header.message_id.hex()}

    result = {"opened": [opened(case) for case in job["open"]], "sealed": [sealed(case) for case in job["seal"]]}
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
