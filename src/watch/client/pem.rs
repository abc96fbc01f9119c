//! Certificates and keys that a kubeconfig carries, or that are in files.

use anyhow::{Context, anyhow, bail};
use data_encoding::BASE64;
use kube::config::{AuthInfo, Cluster};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use secrecy::ExposeSecret;
use std::sync::Arc;

/// The authorities of a cluster, if any are named.
pub(super) fn authorities(cluster: &Cluster) -> anyhow::Result<Option<Vec<CertificateDer<'static>>>> {
    const FIELD: &str = "certificate-authority";
    let data = cluster.certificate_authority_data.as_deref();
    let Some(pem) = read(FIELD, data, cluster.certificate_authority.as_deref())? else { return Ok(None) };
    certificates(FIELD, &pem).map(Some)
}

/// The certificate of a user with its key, if there is one. A key by itself is nothing.
pub(super) fn identity(user: &AuthInfo) -> anyhow::Result<Option<Arc<SingleCertAndKey>>> {
    let data = user.client_certificate_data.as_deref();
    let Some(chain) = read("client-certificate", data, user.client_certificate.as_deref())? else {
        return Ok(None);
    };
    let data = user.client_key_data.as_ref().map(ExposeSecret::expose_secret);
    let key = read("client-key", data, user.client_key.as_deref())?;
    let key = key.context("there is a client-certificate, but no client-key")?;
    let chain = certificates("client-certificate", &chain)?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| anyhow!("client-key: {error}"))?;
    let key = any_supported_type(&key).context("client-key")?;
    let identity = CertifiedKey::new(chain, key);
    if !fits(&identity) {
        bail!("client-key is not the key of client-certificate");
    }
    Ok(Some(Arc::new(identity.into())))
}

/// What a field carries counts for more than the file.
fn read(field: &str, data: Option<&str>, file: Option<&str>) -> anyhow::Result<Option<Vec<u8>>> {
    if let Some(data) = data {
        let decoded = BASE64.decode(data.split_whitespace().collect::<String>().as_bytes());
        return decoded.map(Some).with_context(|| format!("{field}-data is not base64"));
    }
    let Some(file) = file else { return Ok(None) };
    std::fs::read(file).map(Some).with_context(|| format!("{field} {file}"))
}

fn certificates(field: &str, pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| anyhow!("{field}: {error}"))?;
    if found.is_empty() {
        bail!("there is no certificate in {field}");
    }
    Ok(found)
}

/// Whether the key is that of the certificate. rustls asks, too, but refuses certificates of version 1 without
/// looking, and `openssl x509 -req` makes such. webpki knows them as those of authorities.
fn fits(identity: &CertifiedKey) -> bool {
    let certificate = identity.cert.first().map(webpki::anchor_from_trusted_cert);
    match (certificate, identity.key.public_key()) {
        (Some(Ok(certificate)), Some(key)) => key.ends_with(&certificate.subject_public_key_info),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of version 1, with a key in the form of `openssl ecparam -genkey`:
    /// `openssl req -new -key v1.key -subj /O=system:nodes/CN=v1 | openssl x509 -req -signkey v1.key -days 36500`.
    const V1: &str = "-----BEGIN CERTIFICATE-----\n\
        MIIBRTCB6wIUS6DaqSFQ2RAOJ0JpK2FVyg+I6WgwCgYIKoZIzj0EAwIwJDEVMBMG\n\
        A1UECgwMc3lzdGVtOm5vZGVzMQswCQYDVQQDDAJ2MTAgFw0yNjExMzAwMTE2NTNa\n\
        GA8yMTI2MTEwNjAxMTY1M1owJDEVMBMGA1UECgwMc3lzdGVtOm5vZGVzMQswCQYD\n\
        VQQDDAJ2MTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABE/mYNtfmr52/3/m4qa/\n\
        KtsIPyryKdS5p2f9lWLlY9FhBHXkxN53C+6VglsM+hmIDuAtWmePI5NqA2d5xKKq\n\
        iwUwCgYIKoZIzj0EAwIDSQAwRgIhAIWvktr/hgZE865iVHVEz+MY7gutWbQCwNF+\n\
        0eCv3igcAiEA+GSLwnSsTEnXpminCLhVYFjsjUClYjkP210QhNcz7ss=\n\
        -----END CERTIFICATE-----";
    const V1_KEY: &str = "-----BEGIN EC PARAMETERS-----\n\
        BggqhkjOPQMBBw==\n\
        -----END EC PARAMETERS-----\n\
        -----BEGIN EC PRIVATE KEY-----\n\
        MHcCAQEEICLvK91XfPoRwqClfo4QPowKI3Isv0RS0/CN4WEJcY2CoAoGCCqGSM49\n\
        AwEHoUQDQgAET+Zg21+avnb/f+bipr8q2wg/KvIp1LmnZ/2VYuVj0WEEdeTE3ncL\n\
        7pWCWwz6GYgO4C1aZ48jk2oDZ3nEoqqLBQ==\n\
        -----END EC PRIVATE KEY-----";

    fn user(certificate: &str, key: &str) -> AuthInfo {
        AuthInfo {
            client_certificate_data: Some(BASE64.encode(certificate.as_bytes())),
            client_key_data: Some(BASE64.encode(key.as_bytes()).into()),
            ..AuthInfo::default()
        }
    }

    fn complaint(user: &AuthInfo) -> String {
        format!("{:#}", identity(user).expect_err("this must be refused"))
    }

    #[test]
    fn a_certificate_of_version_1_is_good_for_a_client() {
        assert!(identity(&user(V1, V1_KEY)).unwrap().is_some());
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let other = rcgen::KeyPair::generate().unwrap();
        let words = "client-key is not the key of client-certificate";
        assert_eq!(complaint(&user(V1, &other.serialize_pem())), words);
        let signed = rcgen::CertificateParams::default().self_signed(&other).unwrap();
        assert_eq!(complaint(&user(&signed.pem(), V1_KEY)), words);
        assert!(identity(&user(&signed.pem(), &other.serialize_pem())).unwrap().is_some());
    }

    #[test]
    fn what_is_missing_or_no_good_is_named() {
        let without_key = AuthInfo { client_key_data: None, ..user(V1, V1_KEY) };
        assert_eq!(complaint(&without_key), "there is a client-certificate, but no client-key");
        assert_eq!(complaint(&user(V1_KEY, V1_KEY)), "there is no certificate in client-certificate");
        assert!(complaint(&user(V1, V1)).starts_with("client-key: "));
        let not_encoded = AuthInfo { client_certificate_data: Some("-----".to_owned()), ..user(V1, V1_KEY) };
        assert!(complaint(&not_encoded).starts_with("client-certificate-data is not base64"));
        let no_file = AuthInfo { client_certificate: Some("/nonexistent".to_owned()), ..AuthInfo::default() };
        assert_eq!(
            complaint(&no_file),
            "client-certificate /nonexistent: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_key_by_itself_is_nothing() {
        assert!(identity(&AuthInfo { client_certificate_data: None, ..user(V1, V1_KEY) }).unwrap().is_none());
    }
}
