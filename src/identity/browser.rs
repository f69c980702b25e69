//! How a browser shows whose it is, by the kind of person.

use url::Url;

use super::{Identity, application, issuer};
use crate::id::{Person, Source};

/// How a browser shows that it belongs to a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrowserProof {
    /// It signs in at the person's issuer.
    Issuer(Source),
    /// It shows the person's token of obo.
    Token,
    /// It signs in at the issuer of the application's tenant, as the user whom the application names. This proves the
    /// browser; the two stay two people.
    TenantIssuer(Source),
    /// The application says whose it is, at this address of its own.
    Application(Url),
    /// There is no sign-in for such a person: they type a code back that only the browser was shown.
    Code,
}

impl Identity {
    /// How a browser shows that it belongs to `person`; none, where nothing that is configured could.
    pub fn browser_proof(&self, person: &Person) -> Option<BrowserProof> {
        if person.source == Source::obo() {
            return Some(BrowserProof::Token);
        }
        if let Some(application) = self.applications.configured(&person.source, &person.tenant) {
            return of_users(application).or_else(|| self.tenant_issuer(person));
        }
        if person.source.as_str().starts_with("app:") {
            return self.tenant_issuer(person);
        }
        let issuer = self.issuers().find(|issuer| issuer.name == person.source)?;
        Some(if issuer.client_id.is_some() { BrowserProof::Issuer(issuer.name.clone()) } else { BrowserProof::Code })
    }

    /// The one issuer at which people of a tenant sign in. Where there are several, any of them could name a user of the
    /// same id: then none of them proves anything.
    fn tenant_issuer(&self, person: &Person) -> Option<BrowserProof> {
        let signs_in = |issuer: &&issuer::Config| issuer.client_id.is_some() && issuer.may_be_in(&person.tenant);
        let mut issuers = self.issuers().filter(signs_in);
        match (issuers.next(), issuers.next()) {
            (Some(issuer), None) => Some(BrowserProof::TenantIssuer(issuer.name.clone())),
            _ => None,
        }
    }
}

/// What an application says about its users.
fn of_users(application: &application::Application) -> Option<BrowserProof> {
    match application.user_verifier_url() {
        Some(url) => Some(BrowserProof::Application(url.clone())),
        None => application.confirms_by_code().then_some(BrowserProof::Code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Config;
    use crate::identity::fixture::Fixture;

    #[test]
    fn each_kind_of_person_has_its_proof() {
        let config = r#"
            [[issuer]]
            name = "corp"
            issuer = "https://corp.example"
            audience = "https://obo.example/mcp"
            tenant = "acme"
            client_id = "obo"
            [[issuer]]
            name = "old"
            issuer = "https://old.example"
            audience = "https://obo.example/mcp"
            tenant = "acme"
            [[issuer]]
            name = "one"
            issuer = "https://one.example"
            audience = "https://obo.example/mcp"
            tenant_claim = "org"
            tenants = ["both"]
            client_id = "obo"
            [[issuer]]
            name = "two"
            issuer = "https://two.example"
            audience = "https://obo.example/mcp"
            tenant = "both"
            client_id = "obo"
            [[application]]
            name = "plain"
            tenant = "acme"
            key_sha256 = "0000000000000000000000000000000000000000000000000000000000000001"
            [[application]]
            name = "asks"
            tenant = "acme"
            key_sha256 = "0000000000000000000000000000000000000000000000000000000000000002"
            user_verifier_url = "https://shop.example/verify"
            [[application]]
            name = "codes"
            tenant = "acme"
            key_sha256 = "0000000000000000000000000000000000000000000000000000000000000003"
            confirm_by_code = true
            [[application]]
            name = "torn"
            tenant = "both"
            key_sha256 = "0000000000000000000000000000000000000000000000000000000000000004"
        "#;
        let test = Fixture::new(toml::from_str::<Config>(config).unwrap());
        let proof = |tenant: &str, source: &str| {
            test.identity.browser_proof(&Person {
                tenant: tenant.parse().unwrap(),
                source: source.parse().unwrap(),
                user: "alice".parse().unwrap(),
            })
        };
        let source = |name: &str| name.parse::<Source>().unwrap();
        let verify: Url = "https://shop.example/verify".parse().unwrap();
        for (tenant, name, expected) in [
            ("default", "obo", Some(BrowserProof::Token)),
            ("acme", "obo", Some(BrowserProof::Token)),
            ("acme", "corp", Some(BrowserProof::Issuer(source("corp")))),
            ("acme", "old", Some(BrowserProof::Code)),
            ("acme", "gone", None),
            ("acme", "app:plain", Some(BrowserProof::TenantIssuer(source("corp")))),
            ("acme", "app:asks", Some(BrowserProof::Application(verify))),
            ("acme", "app:codes", Some(BrowserProof::Code)),
            // Of `obo app add`, or gone from obo.toml.
            ("acme", "app:added", Some(BrowserProof::TenantIssuer(source("corp")))),
            ("nobody", "app:added", None),
            ("both", "app:torn", None),
        ] {
            assert_eq!(proof(tenant, name), expected, "{tenant} {name}");
        }
    }
}
