-- The service databases of a grid site that has seen some years: a VO's membership and a file catalogue.
-- Accents, other scripts and emoji are here because a dump in the wrong character set destroys them silently; the
-- view, trigger, routine and event because a dump leaves some of them out unless asked.
SET NAMES utf8mb4;
CREATE DATABASE voms_lab_vo CHARACTER SET utf8mb4;
USE voms_lab_vo;
CREATE TABLE version (version INT NOT NULL) ENGINE=InnoDB;
CREATE TABLE ca (cid INT PRIMARY KEY AUTO_INCREMENT, subject_string VARCHAR(255) NOT NULL UNIQUE) ENGINE=InnoDB;
CREATE TABLE usr (
	userid INT PRIMARY KEY AUTO_INCREMENT,
	name VARCHAR(128) NOT NULL,
	institution VARCHAR(128) NOT NULL,
	registered TIMESTAMP NOT NULL DEFAULT '2024-01-01 00:00:01'
) ENGINE=InnoDB;
CREATE TABLE certificate (
	usr_id INT NOT NULL, subject_string VARCHAR(255) NOT NULL, ca_id INT NOT NULL,
	suspended BOOLEAN NOT NULL DEFAULT FALSE, suspended_reason VARCHAR(255),
	FOREIGN KEY (usr_id) REFERENCES usr (userid), FOREIGN KEY (ca_id) REFERENCES ca (cid)
) ENGINE=InnoDB;
CREATE TABLE `groups` (gid INT PRIMARY KEY AUTO_INCREMENT, dn VARCHAR(255) NOT NULL UNIQUE) ENGINE=InnoDB;
CREATE TABLE roles (rid INT PRIMARY KEY AUTO_INCREMENT, role VARCHAR(255) NOT NULL UNIQUE) ENGINE=InnoDB;
CREATE TABLE m (
	userid INT NOT NULL, gid INT NOT NULL, rid INT,
	FOREIGN KEY (userid) REFERENCES usr (userid), FOREIGN KEY (gid) REFERENCES `groups` (gid)
) ENGINE=InnoDB;
CREATE TABLE attributes (a_id INT PRIMARY KEY AUTO_INCREMENT, a_name VARCHAR(255) NOT NULL UNIQUE) ENGINE=InnoDB;
CREATE TABLE usr_attrs (a_id INT NOT NULL, u_id INT NOT NULL, a_value VARCHAR(255), PRIMARY KEY (a_id, u_id)) ENGINE=InnoDB;
CREATE TABLE group_attrs (a_id INT NOT NULL, g_id INT NOT NULL, a_value VARCHAR(255), PRIMARY KEY (a_id, g_id)) ENGINE=InnoDB;
CREATE TABLE role_attrs (
	a_id INT NOT NULL, g_id INT NOT NULL, r_id INT NOT NULL, a_value VARCHAR(255), PRIMARY KEY (a_id, g_id, r_id)
) ENGINE=InnoDB;
CREATE TABLE audit (id INT PRIMARY KEY AUTO_INCREMENT, what VARCHAR(255) NOT NULL) ENGINE=InnoDB;
INSERT INTO version VALUES (3);
INSERT INTO ca (subject_string) VALUES ('/DC=org/DC=example/CN=Lab CA');
INSERT INTO usr (name, institution) VALUES
	('Alice Researcher', 'Institute of Examples'),
	('Użytkownik Ćwiczebny', 'Łódź'),
	('Élève Modèle', 'École d’exemple'),
	('実験 利用者', '漢字研究所'),
	('Emoji 🔬🧪', 'Straße 1');
INSERT INTO certificate (usr_id, subject_string, ca_id) SELECT userid, CONCAT('/DC=org/DC=example/CN=', name), 1 FROM usr;
INSERT INTO `groups` (dn) VALUES ('/lab.vo'), ('/lab.vo/production'), ('/lab.vo/漢字');
INSERT INTO roles (role) VALUES ('VO-Admin'), ('production');
INSERT INTO m SELECT userid, gid, NULL FROM usr, `groups`;
-- Alice may act as production in /lab.vo/production, and nobody as VO-Admin.
INSERT INTO m SELECT 1, gid, rid FROM `groups`, roles WHERE dn = '/lab.vo/production' AND role = 'production';
CREATE VIEW members AS
	SELECT u.name, g.dn FROM usr u JOIN m ON m.userid = u.userid JOIN `groups` g ON g.gid = m.gid;
CREATE TRIGGER usr_added AFTER INSERT ON usr FOR EACH ROW INSERT INTO audit (what) VALUES (CONCAT('added ', NEW.name));
DELIMITER //
CREATE PROCEDURE suspend(IN who INT, IN why VARCHAR(255))
BEGIN
	UPDATE certificate SET suspended = TRUE, suspended_reason = why WHERE usr_id = who;
END //
CREATE FUNCTION member_count() RETURNS INT READS SQL DATA
	RETURN (SELECT COUNT(DISTINCT userid) FROM m) //
DELIMITER ;
-- A second VO, whose only member is Alice. Its tables are those that a VOMS server reads, and no more.
CREATE DATABASE voms_calib_example_org CHARACTER SET utf8mb4;
USE voms_calib_example_org;
CREATE TABLE version LIKE voms_lab_vo.version;
CREATE TABLE ca LIKE voms_lab_vo.ca;
CREATE TABLE usr LIKE voms_lab_vo.usr;
CREATE TABLE certificate LIKE voms_lab_vo.certificate;
CREATE TABLE `groups` LIKE voms_lab_vo.`groups`;
CREATE TABLE roles LIKE voms_lab_vo.roles;
CREATE TABLE m LIKE voms_lab_vo.m;
CREATE TABLE attributes LIKE voms_lab_vo.attributes;
CREATE TABLE usr_attrs LIKE voms_lab_vo.usr_attrs;
CREATE TABLE group_attrs LIKE voms_lab_vo.group_attrs;
CREATE TABLE role_attrs LIKE voms_lab_vo.role_attrs;
INSERT INTO version VALUES (3);
INSERT INTO ca (subject_string) VALUES ('/DC=org/DC=example/CN=Lab CA');
INSERT INTO usr (name, institution) VALUES ('Alice Researcher', 'Institute of Examples');
INSERT INTO certificate (usr_id, subject_string, ca_id) VALUES (1, '/DC=org/DC=example/CN=Alice Researcher', 1);
INSERT INTO `groups` (dn) VALUES ('/calib.example.org'), ('/calib.example.org/night');
INSERT INTO m SELECT userid, gid, NULL FROM usr, `groups`;
CREATE DATABASE cns_db CHARACTER SET utf8mb4;
USE cns_db;
CREATE TABLE Cns_file_metadata (
	fileid BIGINT PRIMARY KEY AUTO_INCREMENT, parent_fileid BIGINT, name VARCHAR(231) NOT NULL, filesize BIGINT NOT NULL,
	guid BINARY(16)
) ENGINE=InnoDB;
CREATE TABLE Cns_file_replica (
	fileid BIGINT NOT NULL, sfn TEXT NOT NULL, KEY (fileid)
) ENGINE=InnoDB;
INSERT INTO Cns_file_metadata (parent_fileid, name, filesize, guid)
	SELECT 1, CONCAT('run-', seq, IF(seq % 10 = 0, '-żółć', '')), seq * 1048576, UNHEX(MD5(seq)) FROM seq_1_to_2000;
INSERT INTO Cns_file_replica
	SELECT fileid, CONCAT('srm://se.example.org/lab.vo/', name) FROM Cns_file_metadata;
