"""What boto3 finds in the simulated KMS. Reads its job as JSON on standard input; an assertion that fails ends it."""

import base64
import json
import sys

import boto3
import botocore.config
import botocore.exceptions

job = json.load(sys.stdin)


def client(key_id="Administrator", secret=job["secret"], token=None, **options):
    config = botocore.config.Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=20, **options)
    session = boto3.session.Session(aws_access_key_id=key_id, aws_secret_access_key=secret, aws_session_token=token)
    return session.client("kms", region_name="us-east-1", endpoint_url=job["url"], verify=job["ca"], config=config)


def refused(code, call, **arguments):
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == code, (code, error.response)
        return error.response["Error"]["Message"]
    raise AssertionError(f"{code} was expected")


kms = client()
metadata = kms.create_key(Description="made by boto3")["KeyMetadata"]
key = metadata["Arn"]
assert metadata["KeyState"] == "Enabled" and metadata["KeySpec"] == "SYMMETRIC_DEFAULT"
assert kms.describe_key(KeyId=metadata["KeyId"])["KeyMetadata"]["Arn"] == key

context = {"purpose": "test", "ünïcode": "✓"}
sealed = kms.encrypt(KeyId=key, Plaintext=b"hello", EncryptionContext=context)
opened = kms.decrypt(CiphertextBlob=sealed["CiphertextBlob"], EncryptionContext=context)
assert (opened["Plaintext"], opened["KeyId"], opened["EncryptionAlgorithm"]) == (b"hello", key, "SYMMETRIC_DEFAULT")
refused("InvalidCiphertextException", kms.decrypt, CiphertextBlob=sealed["CiphertextBlob"], EncryptionContext={})

data_key = kms.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext=context)
assert len(data_key["Plaintext"]) == 32
assert kms.decrypt(CiphertextBlob=data_key["CiphertextBlob"], EncryptionContext=context)["Plaintext"] == data_key["Plaintext"]
assert "Plaintext" not in kms.generate_data_key_without_plaintext(KeyId=key, NumberOfBytes=64)
assert len(kms.generate_random(NumberOfBytes=100)["Plaintext"]) == 100

other = kms.create_key()["KeyMetadata"]["Arn"]
moved = kms.re_encrypt(CiphertextBlob=sealed["CiphertextBlob"], SourceEncryptionContext=context, DestinationKeyId=other)
assert (moved["SourceKeyId"], moved["KeyId"]) == (key, other)
assert kms.decrypt(CiphertextBlob=moved["CiphertextBlob"])["Plaintext"] == b"hello"
refused("IncorrectKeyException", kms.decrypt, CiphertextBlob=moved["CiphertextBlob"], KeyId=key)

grant = kms.create_grant(
    KeyId=key, GranteePrincipal=job["grantee"], Operations=["Decrypt"], Constraints={"EncryptionContextEquals": context}
)
listed = kms.list_grants(KeyId=key)["Grants"]
assert [g["GrantId"] for g in listed] == [grant["GrantId"]] and listed[0]["Constraints"]["EncryptionContextEquals"] == context
kms.revoke_grant(KeyId=key, GrantId=grant["GrantId"])
assert kms.list_grants(KeyId=key)["Grants"] == []

recipient = {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": base64.b64decode(job["document"])}
for answer in (
    kms.generate_data_key(KeyId=key, KeySpec="AES_256", Recipient=recipient),
    kms.decrypt(CiphertextBlob=sealed["CiphertextBlob"], EncryptionContext=context, Recipient=recipient),
    kms.generate_random(NumberOfBytes=32, Recipient=recipient),
):
    assert not answer.get("Plaintext") and answer["CiphertextForRecipient"].startswith(b"\x30\x80")
stale = dict(recipient, AttestationDocument=base64.b64decode(job["stale"]))
refused("ValidationException", kms.generate_data_key, KeyId=key, KeySpec="AES_256", Recipient=stale)

policy = json.loads(kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"])
policy["Statement"].append({"Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*"})
kms.put_key_policy(KeyId=key, PolicyName="default", Policy=json.dumps(policy))
message = refused("AccessDeniedException", kms.decrypt, CiphertextBlob=sealed["CiphertextBlob"], EncryptionContext=context)
assert message == (
    f"User: {job['administrator']} is not authorized to perform: kms:Decrypt on resource: {key} with an explicit deny in a resource-based policy"
), message

refused("UnrecognizedClientException", client(key_id="Nobody").list_grants, KeyId=key)
refused("InvalidSignatureException", client(secret="other").list_grants, KeyId=key)
assert client(key_id="Session", token="token").list_grants(KeyId=key)["Grants"] == []
refused("ExpiredTokenException", client(key_id="Expired", token="token").list_grants, KeyId=key)
refused("UnrecognizedClientException", client(key_id="Session").list_grants, KeyId=key)
try:
    boto3.client("kms", region_name="us-east-1", endpoint_url=job["url"], aws_access_key_id="A", aws_secret_access_key="b",
                 config=botocore.config.Config(retries={"total_max_attempts": 1})).list_keys()
    raise AssertionError("a client that does not know the CA must not connect")
except botocore.exceptions.SSLError:
    pass
print(boto3.__version__)
