//! Certificates for the tests that speak TLS.

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::{IpAddr, Ipv4Addr};

/// A certificate and its key.
pub(crate) struct Identity {
    pub(crate) certificate: rcgen::Certificate,
    pub(crate) params: CertificateParams,
    pub(crate) key: KeyPair,
}

/// A certificate called so that is good for the loopback address, and for nothing else.
pub(crate) fn called(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST))];
    params.use_authority_key_identifier_extension = true;
    params
}

/// The same, marked as an authority.
pub(crate) fn authority(name: &str) -> CertificateParams {
    with(called(name), |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))
}

/// The same but for what is changed.
pub(crate) fn with(
    mut params: CertificateParams,
    change: impl FnOnce(&mut CertificateParams),
) -> CertificateParams {
    change(&mut params);
    params
}

impl Identity {
    pub(crate) fn self_signed(params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        Identity { certificate: params.self_signed(&key).unwrap(), params, key }
    }

    pub(crate) fn signed_by(params: CertificateParams, authority: &Identity) -> Self {
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&authority.params, &authority.key);
        Identity { certificate: params.signed_by(&key, &issuer).unwrap(), params, key }
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.der().clone()]
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
    }
}
