//! The vectors of Project Wycheproof, through the functions that the engine compares and verifies with.
//!
//! What they call valid is accepted and what they call invalid is refused. The vectors that they leave open are
//! RSA signatures without the NULL in the hash's identifier, which are refused here: RFC 8017 asks for it.

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use wycheproof::{TestResult, ecdsa, eddsa, mac, rsa_pkcs1_verify};

use crate::secret::Secret;
use crate::signature::mac::{Hash, MacKey, any_equal};
use crate::signature::public_key::{PublicKey, Signing};

/// Whether a vector has to be accepted.
fn is_valid(result: TestResult) -> bool {
    match result {
        TestResult::Valid => true,
        TestResult::Invalid | TestResult::Acceptable => false,
    }
}

/// The same key in each form in which a provider may hand it out.
fn forms(pem: &str, der: &[u8], others: &[String]) -> Vec<PublicKey> {
    let texts = [pem.to_owned(), BASE64.encode(der)].into_iter().chain(others.iter().cloned());
    texts.map(|text| PublicKey::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text} {error}"))).collect()
}

fn check(keys: &[PublicKey], signing: Signing, (message, signature): (&[u8], &[u8]), result: TestResult, title: &str) {
    for key in keys {
        assert_eq!(key.verifies(signing, message, signature), is_valid(result), "{title} with {key:?}");
    }
}

#[test]
fn hmac() {
    for (hash, name, bits, count) in [
        (Hash::Sha1, mac::TestName::HmacSha1, 160, 170),
        (Hash::Sha256, mac::TestName::HmacSha256, 256, 174),
        (Hash::Sha512, mac::TestName::HmacSha512, 512, 174),
    ] {
        let set = mac::TestSet::load(name).unwrap();
        assert_eq!(set.number_of_tests, count);
        for group in set.test_groups {
            for test in group.tests {
                let code = MacKey::new(hash, &Secret::new(test.key.as_ref())).unwrap().mac(&[&test.msg]);
                let accepted = any_equal(&code, &[&test.tag]);
                let title = format!("{name:?} {}: {}", test.tc_id, test.comment);
                if group.tag_size == bits {
                    assert_eq!(accepted, is_valid(test.result), "{title}");
                } else {
                    // No provider cuts its codes: a part of the right one is as wrong as any other.
                    assert_eq!(code.starts_with(&test.tag), is_valid(test.result), "{title}");
                    assert!(!accepted, "{title}");
                }
            }
        }
    }
}

#[test]
fn ed25519() {
    let set = eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap();
    assert_eq!(set.number_of_tests, 151);
    for group in set.test_groups {
        let keys = forms(&group.pem, &group.der, &[HEXLOWER.encode(&group.key.pk), BASE64.encode(&group.key.pk)]);
        for test in group.tests {
            let title = format!("{}: {}", test.tc_id, test.comment);
            check(&keys, Signing::Ed25519, (&test.msg, &test.sig), test.result, &title);
        }
    }
}

#[test]
fn ecdsa_on_p256() {
    for (signing, name, count) in [
        (Signing::P256, ecdsa::TestName::EcdsaSecp256r1Sha256, 484),
        (Signing::P256Fixed, ecdsa::TestName::EcdsaSecp256r1Sha256P1363, 262),
    ] {
        let set = ecdsa::TestSet::load(name).unwrap();
        assert_eq!(set.number_of_tests, count);
        for group in set.test_groups {
            let (x, y) = group.key.key[1..].split_at(32);
            let (x, y) = (BASE64URL_NOPAD.encode(x), BASE64URL_NOPAD.encode(y));
            let jwk = format!(r#"{{"kty":"EC","crv":"P-256","x":"{x}","y":"{y}"}}"#);
            let keys = forms(&group.pem, &group.der, &[jwk]);
            for test in group.tests {
                let title = format!("{name:?} {}: {}", test.tc_id, test.comment);
                check(&keys, signing, (&test.msg, &test.sig), test.result, &title);
            }
        }
    }
}

#[test]
fn rsa_with_sha256() {
    for (name, count) in [
        (rsa_pkcs1_verify::TestName::Rsa2048Sha256, 259),
        (rsa_pkcs1_verify::TestName::Rsa3072Sha256, 259),
        (rsa_pkcs1_verify::TestName::Rsa4096Sha256, 258),
        (rsa_pkcs1_verify::TestName::Rsa8192Sha256, 258),
    ] {
        let set = rsa_pkcs1_verify::TestSet::load(name).unwrap();
        assert_eq!(set.number_of_tests, count);
        for group in set.test_groups {
            let number = |bytes: &[u8]| {
                let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                BASE64URL_NOPAD.encode(&bytes[zeros..])
            };
            let jwk = format!(r#"{{"kty":"RSA","n":"{}","e":"{}"}}"#, number(&group.key.n), number(&group.key.e));
            let keys = forms(&group.pem, &group.der, &[jwk]);
            for test in group.tests {
                let title = format!("{name:?} {}: {}", test.tc_id, test.comment);
                check(&keys, Signing::RsaSha256, (&test.msg, &test.sig), test.result, &title);
            }
        }
    }
}
