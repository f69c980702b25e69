//! The operating system's user: for stdio and the command line, where the process itself is the proof.

use async_trait::async_trait;

use super::{Authenticate, Credential, IdentityError, Subject, Via};
use crate::id::{Person, Source, UserId};

/// The method. It has nothing to check: whoever started the process can read what the process can.
#[derive(Debug, Clone, Copy)]
pub struct OsUser;

#[async_trait]
impl Authenticate for OsUser {
    async fn authenticate(&self, credential: &Credential) -> Result<Subject, IdentityError> {
        let Credential::OsUser { tenant, user } = credential else { return Err(IdentityError::Missing) };
        let person = Person { tenant: tenant.clone(), source: Source::obo(), user: user.clone() };
        Ok(Subject { person, groups: Vec::new(), via: Via::OsUser, expires_at: None, lacking: None })
    }
}

/// The name of the user that runs this process, from the operating system's user database.
///
/// Not from `USER` or `LOGNAME`: a program that a user starts with another environment would act as somebody else.
///
/// # Errors
/// One line: the user has no name here, as in a container that runs under a bare user id.
pub fn os_user_name() -> Result<UserId, String> {
    let name = whoami::username()
        .map_err(|error| format!("the operating system knows no name for this user ({error}); say --user NAME"))?;
    name.parse().map_err(|error| format!("{error}; say --user NAME"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::TenantId;
    use crate::secret::Secret;

    #[tokio::test]
    async fn the_process_is_the_proof_and_a_bearer_is_not() {
        let (tenant, user): (TenantId, UserId) = ("acme".parse().unwrap(), "alice".parse().unwrap());
        let subject = OsUser.authenticate(&Credential::OsUser { tenant, user }).await.unwrap();
        assert_eq!(subject.person().to_string(), "alice (obo, acme)");
        assert_eq!((subject.groups(), subject.via()), (&[][..], &Via::OsUser));
        let bearer = Credential::Bearer { token: Secret::new("x"), obo_user: None };
        assert_eq!(OsUser.authenticate(&bearer).await, Err(IdentityError::Missing));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_name_belongs_to_the_process_s_user_id() {
        use std::os::unix::fs::MetadataExt as _;
        let uid = std::fs::metadata("/proc/self").unwrap().uid();
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
        let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
        match passwd.lines().map(fields).find(|user| user[2] == uid.to_string()) {
            Some(user) => assert_eq!(os_user_name().unwrap().as_str(), user[0]),
            // The name may come from elsewhere (NSS), or there is none.
            None => assert!(os_user_name().is_ok() || os_user_name().unwrap_err().ends_with("say --user NAME")),
        }
    }
}
